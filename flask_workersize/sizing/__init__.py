"""What was asked for and what follows: settings, profile, plan; pure."""
