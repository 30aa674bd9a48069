"""SQL, with each statement beside the function that runs it.

Functions take a connection; the caller owns the transaction.
"""
