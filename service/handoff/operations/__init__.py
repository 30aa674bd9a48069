"""What operators ask and tell the service: health, readiness, the operations port, and alerts from Alertmanager."""
