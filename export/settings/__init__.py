"""Settings of a bundle, made from a checkpoint's settings files.

* ``hf_config``: sizes of the networks.
* ``image_processor``, ``video_processor``: preparation of images and videos.
* ``prompt``: chat format and token ids, made by ``chat_template``, ``chat_format``, ``chat_proof`` and
  ``special_tokens``; ``vocabulary`` checks the tokens.
* ``generation``: defaults of answers.
"""
