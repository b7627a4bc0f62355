"""Tables of every key in a checkpoint's settings files: used, irrelevant for a reason, or refused.

* ``config_keys``, ``processor_keys``, ``generation_keys``: the tables, made of ``key_table``'s rows.
* ``checkpoint_keys``: checks a checkpoint against them.
* ``settings_types``: checks the types of settings that have a structure.
"""
