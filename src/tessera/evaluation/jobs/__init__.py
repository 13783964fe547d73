"""The job list: which jobs there are, which are ready, doing them, the record each leaves."""
