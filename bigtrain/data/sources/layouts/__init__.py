"""Which pictures, splits and classes a set has: folders by class, ImageNet, CIFAR, idx files, LSUN."""
