"""Brings a bundle and the runtime to a device.

* ``deploy``: over ssh
* ``first_question``: what a deployed bundle is asked first
* ``remote``: commands and files for a machine behind ssh
* ``pack``: as one file, for a device without network
* ``installer``: the program that runs on the device
* ``wheels``: the wheels for another machine and Python
"""
