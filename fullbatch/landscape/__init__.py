"""Loss landscapes: loss, accuracy and full objective on lines and planes through the parameters of a module."""
