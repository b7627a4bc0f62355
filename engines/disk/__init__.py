"""Files on disk.

* ``files``: files and folders that are written completely or not at all
* ``locks``: locks between processes
* ``mounts``: mounted file systems
"""
