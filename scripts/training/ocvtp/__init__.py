"""OC-VTP's pruner.

train      scripts/train_ocvtp.py: its options
trainer    the training loop
features   the vision encoder's features of all images, on disk
decoder    the decoder that only training needs, the loss, and measures of a selection
convert    scripts/convert_ocvtp.py: the published weights as safetensors
"""
