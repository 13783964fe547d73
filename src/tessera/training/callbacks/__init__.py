"""What happens around each step, as Composer's callbacks."""
