"""L3. From music tokens to acoustic tokens: windows of the stages, and texts that change."""
