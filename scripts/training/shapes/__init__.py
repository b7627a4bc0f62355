"""The checkpoint scripts/shapes, trained from scratch on synthetic scenes.

train    scripts/train_shapes.py: the stages in their order
model    tokenizers, CLIP and LLaVA before training; export and accuracy afterwards
data     batches of scenes, captions and questions
stages   a training loop that can resume, and the losses of the vision stages
talk     the losses of the language stages
"""
