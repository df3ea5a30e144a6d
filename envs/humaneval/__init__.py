"""The 164 programming problems of HumanEval, graded by hidden tests in a sandbox."""
