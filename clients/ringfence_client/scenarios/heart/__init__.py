"""The four hospitals of the UCI Heart Disease study, as a scenario: see ORIGIN.md."""
