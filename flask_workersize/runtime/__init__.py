"""What happens while the app is served."""
