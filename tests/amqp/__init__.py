"""A small event hub that speaks AMQP 1.0 on loopback, for tests with the SDK as it is."""
