"""Models to serve without a download: the shipped `tiny`, and folders of random weights."""
