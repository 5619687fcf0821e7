"""The archive: events on their way out of the database, as signed segments in a directory or an S3-compatible store.

- ``segment``: one segment as bytes, and whether it is what was signed (docs/reference/archive-format.md).
- ``store``: where the objects are.
- ``index``: what the database knows of them.
- ``writing``: writes segments before events are pruned, and takes out what is erased or deleted.
- ``reading``: events below a stream's tail, for whoever asks the log.
- ``verifying``: every segment from end to end.
"""
