"""Buckets: run directories and data sets at gs://BUCKET/PATH.

TensorFlow reads and writes local files only.  google-cloud-storage is imported only when an
address is in a bucket.
"""
