"""Brings a bundle and the runtime to a device.

* ``deploy``: over ssh
* ``pack``: as one file, for a device without network
* ``installer``: the program that runs on the device
* ``wheels``: the wheels for another machine and Python
"""
