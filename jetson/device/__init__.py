"""The device at hand: what it is, what is installed, what is wrong with it, and its power modes."""
