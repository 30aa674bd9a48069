"""What operators use: health, readiness, the operations port, and the receiver of Alertmanager's notifications."""
