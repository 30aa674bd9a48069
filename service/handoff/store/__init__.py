"""SQL, each statement beside the function that runs it. Functions take a connection; edges own the transaction."""
