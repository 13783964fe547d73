"""What tasks read: tables, the labels in them, and what is found wrong before any job."""
