"""Video files (``video_file``), cameras and streams (``capture``), and the newest frame of one (``latest_frame``)."""
