"""The log: declared topics, the embedded SQLite log, and Faust's transport over it."""
