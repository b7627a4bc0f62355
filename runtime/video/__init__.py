"""Video: files (``video_file``), cameras and streams (``capture``), their newest frame (``latest_frame``)."""
