"""Put probes into programs that were not written for them: scripts as they are, trainers of other libraries, their logs.

Nothing here is imported before it is asked for: each module needs the library that it fits into.
"""
