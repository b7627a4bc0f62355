"""A Hugging Face checkpoint: where it is, its files, and its tensors one at a time.

* ``find``, ``hub``, ``model_names``: locate a checkpoint.
* ``directory``, ``tensor_files``: read its files; ``files`` lists the files that are read.
* ``prequantized``, ``random_weights``, ``clip_joint_space``, ``pruner_weights``: other kinds of weights.
* ``layered_weights``: weights that lie over other weights, such as those of an adapter.
* ``licence``: the checkpoint's licence.
"""
