"""Devices, and the machine that this runs on.

* ``devices``: the table of devices and JetPacks
* ``system``: access to files and commands of this machine
* ``inventory``: what is installed on it
* ``doctor``: what is wrong with it
* ``power_modes``: its power modes
"""
