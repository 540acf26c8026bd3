"""Answer checking: a model's text and the accepted answers -> a grade. Text is compared, never run; `worker` bounds time and memory."""
