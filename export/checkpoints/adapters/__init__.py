"""LoRA adapters.

* ``lora``, ``lora_config``: read an adapter's tensors and settings.
* ``merged``: merges it into a checkpoint's tensors.
"""
