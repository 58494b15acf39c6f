"""What happens when providers fail: breakers, retries, health checks, and answers that do without a provider."""
