--- The one options table that run, start, popen, exec and boot share.
--
-- Everything is checked here, before anything starts, and turned into the `spec` that engines take:
-- `argv` in place of command/args/shell, sizes in bytes, the session's defaults merged in.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local cache = require "bough.cache"
local files = require "bough.files"

local M = {}

local known = {
  "command", "args", "shell", "env", "cwd", "user", "hostname", "stdin", "stdout", "stderr", "text",
  "files", "tag", "timeout", "disposable", "truncate_output_at", "check", "limits", "network", "pty",
  "on_progress", "cache", "queue",
}
local is_known = {}
for _, name in ipairs(known) do is_known[name] = true end
is_known.input = true -- another name of stdin, as Python's subprocess has it; messages know the one

-- Names from other libraries that edit distance would not find.
local aliases = {
  workdir = "cwd", working_dir = "cwd", dir = "cwd", directory = "cwd", chdir = "cwd",
  cmd = "command", argv = "command", memory = "limits", mem = "limits",
  pids = "limits", cpu = "limits", disk = "limits", uid = "user", name = "tag", net = "network",
  on_output = "stdout", ephemeral = "disposable", max_output = "truncate_output_at",
  discard = "disposable",
}

local default_keys = {
  "cwd", "env", "timeout", "hostname", "user", "limits", "queue", "network", "check",
  "truncate_output_at",
}

local OUTPUT_LIMIT = 1024 * 1024

local raise, quote = errors.raise, errors.quote

-- Counts the array part, refusing holes: { "ls", nil, "-l" } would silently lose its tail.
local function positional_count(options, op)
  local count, highest = 0, 0
  for key in pairs(options) do
    if math.type(key) == "integer" and key >= 1 then
      count = count + 1
      if key > highest then highest = key end
    elseif type(key) ~= "string" then
      raise("invalid", op, "option names are strings, not %s", quote(key))
    elseif not is_known[key] then
      errors.unknown(op, "option", key, known, aliases[key])
    end
  end
  if count ~= highest then
    for i = 1, highest do
      if options[i] == nil then
        raise("invalid", op, "argument %d of the command is nil, but %d follow it", i, highest - i)
      end
    end
  end
  return count
end

local function argument(value, op, what)
  if math.type(value) == "integer" then return ("%d"):format(value) end
  if type(value) == "number" then return tostring(value) end
  if type(value) ~= "string" then
    raise("invalid", op, "%s must be a string or a number, got %s", what, quote(value))
  end
  if value:find("\0", 1, true) then
    raise("invalid", op, "%s holds a NUL byte: %s", what, quote(value))
  end
  return value
end

-- Appends options.args to a command.
local function add_args(argv, args, op)
  if type(args) == "string" then
    raise("invalid", op, "args must be an array of strings, got the string %s: write args = { %s }",
      quote(args), quote(args))
  elseif args ~= nil and type(args) ~= "table" then
    raise("invalid", op, "args must be an array of strings, got %s", quote(args))
  end
  local seen, before = 0, #argv
  for key in pairs(args or {}) do
    if math.type(key) ~= "integer" or key < 1 then
      raise("invalid", op, "args must be an array, but has the key %s", quote(key))
    end
    seen = math.max(seen, key)
  end
  for i = 1, seen do argv[before + i] = argument(args[i], op, ("args[%d]"):format(i)) end
  return argv
end

-- What the image runs when it is told nothing, or only arguments.
local function image_command(args, image, op)
  local entrypoint, cmd = image and image.entrypoint, image and image.cmd
  if args ~= nil then
    if not entrypoint then
      raise("invalid", op, "args given without command%s",
        image and ", and the image has no entrypoint" or "")
    end
    return add_args({ table.unpack(entrypoint) }, args, op)
  end
  local argv = { table.unpack(entrypoint or {}) }
  return table.move(cmd or {}, 1, #(cmd or {}), #argv + 1, argv)
end

-- shell = true, as Python's subprocess has it: the one word there is is a shell line.
local function shell_line(options, count, op)
  local line = options.command
  if line == nil then line = options[1] end
  if type(line) ~= "string" or count > 1 or (count == 1 and options.command ~= nil) or options.args ~= nil then
    raise("invalid", op, 'shell = true goes with one line and nothing else: ("a && b", { shell = true }), or'
      .. ' { shell = "a && b" }')
  end
  return { "/bin/sh", "-c", argument(line, op, "the shell line") }
end

local function build_argv(options, count, op, image)
  local argv = {}
  if options.shell == true then return shell_line(options, count, op) end
  if options.shell ~= nil then
    if count > 0 or options.command ~= nil then
      raise("invalid", op, "both a command and shell = %s given: use one", quote(options.shell))
    end
    if options.args ~= nil then
      raise("invalid", op, "args goes with command, not with a shell line")
    end
    if type(options.shell) ~= "string" then
      raise("invalid", op, "shell must be a string, got %s", quote(options.shell))
    end
    return { "/bin/sh", "-c", argument(options.shell, op, "shell") }
  end
  if options.command ~= nil then
    if count > 0 then
      raise("invalid", op, "both command = %s and the array part %s given: use one",
        quote(options.command), quote(options[1]))
    end
    if type(options.command) == "table" then
      raise("invalid", op, "command is one program name: put its arguments in args, or the whole"
        .. " command in the array part")
    end
    argv[1] = argument(options.command, op, "command")
    add_args(argv, options.args, op)
  elseif count == 0 then
    argv = image_command(options.args, image, op)
  else
    if options.args ~= nil then
      raise("invalid", op, "args given without command")
    end
    for i = 1, count do argv[i] = argument(options[i], op, ("argument %d"):format(i)) end
  end
  if #argv == 0 then
    raise("invalid", op, 'no command given: { "prog", "arg" } or shell = "line"')
  end
  if argv[1] == "" then raise("invalid", op, "the program name is empty") end
  return argv
end

--- One line that stands for a command in messages, listings and histories.
---@param argv string[]
---@return string
function M.describe(argv)
  local text
  if #argv == 3 and argv[1] == "/bin/sh" and argv[2] == "-c" then
    text = argv[3]
  else
    local words = {}
    for i, word in ipairs(argv) do
      if word == "" or word:find("[^%w_@%%+=:,./-]") then
        word = "'" .. word:gsub("'", "'\\''") .. "'"
      end
      words[i] = word
    end
    text = table.concat(words, " ")
  end
  text = text:gsub("^%s+", ""):gsub("%s+$", ""):gsub("%c+", " ")
  if #text > 200 then
    local stop = 197
    while stop > 190 and (text:byte(stop + 1) & 0xC0) == 0x80 do stop = stop - 1 end
    text = text:sub(1, stop) .. "..."
  end
  return text
end

local function merged(own, base)
  if not base then return own end
  if not own then return base end
  local all = {}
  for name, value in pairs(base) do all[name] = value end
  for name, value in pairs(own) do all[name] = value end
  return all
end

--- Checks the options that a session carries for all its runs.
---@param options table? cwd, env, timeout, hostname, user, limits, queue, network, check, truncate_output_at
---@param op string
---@return table defaults normalised, owned by the caller
function M.defaults(options, op)
  options = errors.check_keys(op, options, default_keys)
  return {
    cwd = check.cwd(options.cwd, op),
    env = check.env(options.env, op),
    timeout = check.timeout(options.timeout, op),
    hostname = check.hostname(options.hostname, op),
    user = check.user(options.user, op),
    limits = check.limits(options.limits, op),
    network = check.network(options.network, op),
    queue = check.boolean(options.queue, op, "queue"),
    check = check.boolean(options.check, op, "check"),
    truncate_output_at = check.truncate(options.truncate_output_at, op),
  }
end

local boot_keys = { table.unpack(default_keys) }
for i = #boot_keys, 1, -1 do
  if boot_keys[i] == "queue" then table.remove(boot_keys, i) end
end
for _, name in ipairs { "files", "disposable", "on_progress" } do boot_keys[#boot_keys + 1] = name end

--- Checks the options of a sandbox that is booted: what belongs to it, and what goes under those of each process in it.
---@param given table?
---@param op string
---@return table spec hostname, limits, network, files (a plan of bough.files), disposable, timeout (of the sandbox)
---@return table defaults under those of each process: cwd, env, user, check, truncate_output_at
function M.boot(given, op)
  given = errors.check_keys(op, given, boot_keys)
  local all = {}
  for name, value in pairs(given) do all[name] = value end
  all.files, all.disposable, all.on_progress = nil, nil, nil
  local defaults = M.defaults(all, op)
  local timeout = defaults.timeout
  local spec = {
    hostname = defaults.hostname, limits = defaults.limits, network = defaults.network or "none",
    timeout = timeout ~= math.huge and timeout or nil,
    files = files.option(given.files, op, defaults.cwd),
    disposable = check.boolean(given.disposable, op, "disposable") or false,
    on_progress = check.callback(given.on_progress, op, "on_progress"),
  }
  for _, name in ipairs { "hostname", "limits", "network", "timeout" } do defaults[name] = nil end
  return spec, defaults
end

-- What belongs to the sandbox, and so cannot be said of one more process in it.
local of_sandbox = { "files", "limits", "network", "hostname", "disposable", "tag", "cache", "queue", "on_progress" }

-- `input` under its own name, in a copy.
local function renamed(given, op)
  if given.input == nil then return given end
  if given.stdin ~= nil then
    raise("invalid", op, "both stdin and input given, which are the same: use one")
  end
  local all = {}
  for name, value in pairs(given) do all[name] = value end
  all.stdin, all.input = given.input, nil
  return all
end

--- Brings the ways of calling into one table: ("line", {...}) is ({ shell = "line", ... }), `input` is `stdin`.
---@param command string|table
---@param options table?
---@param op string
---@return table
function M.fold(command, options, op)
  if type(command) == "table" then
    if getmetatable(command) ~= nil then
      raise("invalid", op, "expected a command, got an object: %s", quote(tostring(command)))
    end
    if options ~= nil then
      raise("invalid", op, "options go into the command's own table: { \"prog\", timeout = 60 }")
    end
    return renamed(command, op)
  end
  if type(command) ~= "string" then
    raise("invalid", op, "expected a shell line or a table, got %s", quote(command))
  end
  if options ~= nil and type(options) ~= "table" then
    raise("invalid", op, "options must be a table, got %s", quote(options))
  end
  local all = {}
  for name, value in pairs(options or {}) do all[name] = value end
  if all.shell == false then
    raise("invalid", op, 'shell = false, but a string is a shell line: write { "prog", "arg" }')
  elseif all.shell == true then
    all.shell = nil
  end
  if #all > 0 or all.command ~= nil or all.shell ~= nil then
    raise("invalid", op, "two commands given: the string %s is a shell line already", quote(command))
  end
  all.shell = command
  return renamed(all, op)
end

-- A terminal is one stream: what is typed goes in, and all that is shown comes out of stdout.
local function on_terminal(spec, options, op, live)
  if options.stderr ~= nil then
    raise("invalid", op, "stderr with pty: a terminal has one output, which is stdout")
  end
  if live and options.stdin == nil then spec.stdin = core.PIPE end
  if spec.env == nil or spec.env.TERM == nil then
    spec.env = merged({ TERM = spec.pty.term }, spec.env)
  end
end

local function refuse_of_sandbox(options, within, op)
  for _, name in ipairs(of_sandbox) do
    if options[name] ~= nil then
      if within.bare then
        raise("invalid", op, "%s: a plain command of this machine has no sandbox", name)
      elseif not (name == "queue" and within.inside:find "session") then
        raise("invalid", op, "%s belongs to the sandbox, which is running already: %s", name, within.inside)
      end
    end
  end
end

--- Checks and normalises one call's options.
---@param command string|table shell line, or the options table with the command in its array part
---@param options table? with a shell line: its options
---@param within { op: string, defaults: table?, image: bough.image_defaults?, live: boolean?, inside: string?,
---  bare: boolean? }?
---  op for messages; a session's defaults; under them the image's; `live`: pipes may be asked for, and are the
---  default (popen, exec); `inside`: the sandbox is there already: says where its options belong; `bare`: there
---  is no sandbox
---@return table spec what engines take, but `files`, a plan of bough.files, and `cache`
---@return { check: boolean, queue: boolean } policy what the caller does about it
function M.spec(command, options, within)
  local op = within and within.op or "run"
  local defaults = within and within.defaults or {}
  local live = within ~= nil and within.live or false
  local image = within and within.image
  local from_image = image or {}
  options = M.fold(command, options, op)
  if within and (within.inside or within.bare) then refuse_of_sandbox(options, within, op) end
  if live and options.cache then
    raise("invalid", op, "cache is for run: a live process has no result to remember")
  end
  local argv = build_argv(options, positional_count(options, op), op, image)
  local cwd = check.cwd(options.cwd, op) or defaults.cwd or from_image.cwd

  local spec = {
    argv = argv,
    command = M.describe(argv),
    env = merged(merged(check.env(options.env, op), defaults.env), check.env(from_image.env, op)),
    cwd = cwd,
    user = check.user(options.user, op) or defaults.user or check.user(from_image.user, op),
    hostname = check.hostname(options.hostname, op) or defaults.hostname,
    stdin = check.stdin(options.stdin, op, live),
    stdout = check.output(options.stdout, op, "stdout", live),
    stderr = check.output(options.stderr, op, "stderr", live),
    text = check.text(options.text, op),
    tag = check.tag(options.tag, op),
    disposable = check.boolean(options.disposable, op, "disposable") or false,
    truncate_output_at = check.truncate(options.truncate_output_at, op)
      or defaults.truncate_output_at or OUTPUT_LIMIT,
    limits = merged(check.limits(options.limits, op), defaults.limits),
    network = check.network(options.network, op) or defaults.network or "none",
    files = files.option(options.files, op, cwd),
    pty = check.pty(options.pty, op),
    cache = check.boolean(options.cache, op, "cache") or nil,
    on_progress = check.callback(options.on_progress, op, "on_progress"),
  }
  local timeout = check.timeout(options.timeout, op) or defaults.timeout
  if timeout ~= math.huge then spec.timeout = timeout end
  if spec.disposable and spec.tag then
    raise("invalid", op, "tag = %s with disposable = true: a disposable run leaves no image to tag",
      quote(spec.tag))
  end
  if spec.cache then cache.check(spec, op) end
  if spec.pty then on_terminal(spec, options, op, live) end

  local function either(name)
    local own = check.boolean(options[name], op, name)
    if own ~= nil then return own end
    return defaults[name] or false
  end
  return spec, { check = either "check", queue = either "queue" }
end

return M
