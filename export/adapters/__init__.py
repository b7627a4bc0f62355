"""LoRA adapters: reading them (``lora``, ``lora_config``) and merging them into a checkpoint's tensors (``merged``)."""
