"""What an application may ask for, validated in full before anything is stored."""
