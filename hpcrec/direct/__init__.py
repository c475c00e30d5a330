"""Direct methods: pictures and lens values from 4D data without iterations, and how frames and scan are oriented."""
