"""Files on disk: written whole or not at all (``files``), locks between processes (``locks``), mounted file systems (``mounts``)."""
