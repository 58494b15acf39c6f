"""What instances share from second to second."""
