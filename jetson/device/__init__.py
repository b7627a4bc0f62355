"""Devices, and the machine that this runs on.

* ``devices``: the table of devices and JetPacks
* ``system``: access to files and commands of this machine
* ``inventory``: what is installed on it
* ``findings``: what is wrong with it
* ``doctor``: the command that says so
* ``power_modes``: its power modes
"""
