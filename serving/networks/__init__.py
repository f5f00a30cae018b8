"""What runs the members of an ensemble on a batch: networks from stored weights, engines, devices."""
