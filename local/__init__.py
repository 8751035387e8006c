"""An imitation of the AWS parts the service runs on, for this machine only; production code never imports it."""
