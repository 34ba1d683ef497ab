std = "lua54"
max_line_length = 120
self = false

files["spec/**/*_spec.lua"] = { std = "+busted" }
files["spec/engine"] = { std = "+busted" }
exclude_files = { "build", "build-asan" }
