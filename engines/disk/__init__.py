"""Files on disk.

* ``files``: files and folders that are written completely or not at all
* ``locks``, ``lock_owner``: locks between processes, and who holds one
* ``mounts``: mounted file systems
"""
