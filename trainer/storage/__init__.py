"""Buckets: run directories and data sets at gs://BUCKET/PATH.

TensorFlow sees local files only.  google-cloud-storage is imported when there is an address
of a bucket, not before.
"""
