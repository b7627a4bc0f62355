"""A Hugging Face checkpoint: where it is, its files, and its tensors one at a time.

* ``find``, ``hub``, ``model_names``: locate a checkpoint.
* ``directory``, ``tensor_files``: read its files; ``files`` lists the files that are read.
* ``adapters``, ``prequantized``, ``random_weights``: other kinds of weights.
* ``layered_weights``: weights that lie over other weights, such as a pruner's over the model's.
* ``module_weights``: the tensors that a module needs, and how it is filled with them.
* ``licence``: the checkpoint's licence.
"""
