--- Checks of single option values. Each takes a value that may be nil and returns its normal form;
--- what is wrong raises kind `invalid` (or `unsupported`) and names the option and the value.

local core = require "bough.core"
local errors = require "bough.error"

local raise, quote = errors.raise, errors.quote

local M = {}

local function text_of(value, op, name)
  if type(value) ~= "string" then
    raise("invalid", op, "%s must be a string, got %s", name, quote(value))
  end
  if value:find("\0", 1, true) then
    raise("invalid", op, "%s holds a NUL byte: %s", name, quote(value))
  end
  return value
end

---@return boolean?
function M.boolean(value, op, name)
  if value ~= nil and type(value) ~= "boolean" then
    raise("invalid", op, "%s must be true or false, got %s", name, quote(value))
  end
  return value
end

---@return function?
function M.callback(value, op, name)
  if value ~= nil and type(value) ~= "function" then
    raise("invalid", op, "%s must be a function, got %s", name, quote(value))
  end
  return value
end

--- Environment: name -> string, or false to remove an inherited one. Numbers become text.
---@return table<string, string|false>?
function M.env(value, op)
  if value == nil then return nil end
  if type(value) ~= "table" then
    raise("invalid", op, "env must be a table, got %s", quote(value))
  end
  local env = {}
  for name, content in pairs(value) do
    if type(name) ~= "string" then
      raise("invalid", op, "env has the key %s: write env = { NAME = \"value\" }", quote(name))
    end
    if name == "" or name:find("[=\0]") then
      raise("invalid", op, "env name %s may not be empty nor hold '=' or NUL", quote(name))
    end
    if type(content) == "number" then
      content = math.type(content) == "integer" and ("%d"):format(content) or tostring(content)
    elseif content ~= false then
      text_of(content, op, "env." .. name)
    end
    env[name] = content
  end
  if next(env) == nil then return nil end
  return env
end

---@return string?
function M.cwd(value, op)
  if value == nil then return nil end
  text_of(value, op, "cwd")
  if value:sub(1, 1) ~= "/" then
    raise("invalid", op, "cwd must be an absolute path in the image, got %s", quote(value))
  end
  return value
end

local function id_part(text, op, value)
  if text:find("^%d+$") then
    local id = math.tointeger(tonumber(text))
    if not id or id > 4294967294 then
      raise("invalid", op, "user %s: the id %s is out of range", quote(value), text)
    end
    return true
  end
  return text:find("^[%a_][%w_.-]*%$?$") ~= nil and #text <= 64
end

--- "uid", "uid:gid", "name" or "name:group"; a plain number is a uid.
---@return string?
function M.user(value, op)
  if value == nil then return nil end
  if math.type(value) == "integer" then value = ("%d"):format(value) end
  text_of(value, op, "user")
  local owner, group = value:match("^([^:]*):(.*)$")
  owner = owner or value
  if not id_part(owner, op, value) or (group and not id_part(group, op, value)) then
    raise("invalid", op, 'user must be "uid", "uid:gid" or a name, got %s', quote(value))
  end
  return value
end

---@return string?
function M.hostname(value, op)
  if value == nil then return nil end
  text_of(value, op, "hostname")
  if #value > 64 then
    raise("invalid", op, "hostname is longer than 64 bytes: %s", quote(value))
  end
  if value == "" or value:find("[^%w.-]") or value:find("^[.-]") or value:find("[.-]$")
    or value:find("..", 1, true) then
    raise("invalid", op, "hostname may hold letters, digits, '-' and '.' inside, got %s", quote(value))
  end
  return value
end

--- Seconds, fractional; math.huge (returned as it is) means no limit.
---@return number?
function M.timeout(value, op, name)
  if value == nil then return nil end
  if type(value) ~= "number" or value ~= value or value <= 0 then
    raise("invalid", op, "%s must be a positive number of seconds, got %s", name or "timeout", quote(value))
  end
  return value + 0.0
end

local units = { [""] = 1, K = 1 << 10, M = 1 << 20, G = 1 << 30, T = 1 << 40 }

--- Bytes: an integer, or text such as "64M" or "1.5G" (binary units; "MB" and "MiB" mean the same).
---@return integer
function M.size(value, op, name, least)
  local bytes
  if type(value) == "string" then
    local digits, unit = value:match("^%s*(%d+%.?%d*)%s*([kKmMgGtT]?)i?[bB]?%s*$")
    if digits then
      -- as a float, so that too large a size fails to convert instead of wrapping round
      bytes = math.tointeger((tonumber(digits) + 0.0) * units[unit:upper()] // 1)
    end
  elseif type(value) == "number" then
    bytes = math.tointeger(value)
  end
  if not bytes or bytes < least then
    raise("invalid", op, '%s must be bytes (an integer, or text such as "64M"), got %s', name,
      quote(value))
  end
  return bytes
end

---@return integer?
function M.truncate(value, op)
  if value == nil then return nil end
  return M.size(value, op, "truncate_output_at", 0)
end

local limit_keys = { "memory", "pids", "cpu", "disk", "files" }

local function count_limit(value, op, name)
  local count = type(value) == "number" and math.tointeger(value)
  if not count or count < 1 then
    raise("invalid", op, "%s must be a positive integer, got %s", name, quote(value))
  end
  return count
end

local limit_checks = {
  memory = function(value, op) return M.size(value, op, "limits.memory", 1) end,
  disk = function(value, op) return M.size(value, op, "limits.disk", 1) end,
  pids = function(value, op) return count_limit(value, op, "limits.pids") end,
  files = function(value, op) return count_limit(value, op, "limits.files") end,
  cpu = function(value, op)
    if type(value) ~= "number" or not (value > 0 and value < math.huge) then
      raise("invalid", op, "limits.cpu must be a positive number of cores, got %s", quote(value))
    end
    return value + 0.0
  end,
}

--- memory and disk in bytes, pids and files as counts, cpu in cores.
---@return table?
function M.limits(value, op)
  if value == nil then return nil end
  if type(value) ~= "table" then
    raise("invalid", op, "limits must be a table, got %s", quote(value))
  end
  local limits = {}
  for name, amount in pairs(value) do
    local checked = limit_checks[name]
    if not checked then errors.unknown(op, "limit", name, limit_keys) end
    limits[name] = checked(amount, op)
  end
  if next(limits) == nil then return nil end
  return limits
end

local networks = { "none", "host", "nat" }

---@return string?
function M.network(value, op)
  if value == nil or value == "none" or value == "host" or value == "nat" then return value end
  if type(value) ~= "string" then
    raise("invalid", op, "network must be a string, got %s", quote(value))
  end
  return errors.unknown(op, "network", value, networks)
end

---@return "lines"?
function M.text(value, op)
  if value == nil or value == "lines" then return value end
  if type(value) == "boolean" or value == "chunks" then return nil end
  raise("invalid", op, 'text must be "lines" or "chunks", got %s', quote(value))
end

local seconds_in = { s = 1, m = 60, h = 3600, d = 86400, w = 604800 }

--- A point in time: seconds since the epoch; { ago = seconds } and "1h" count back from now.
---@return number?
function M.moment(value, op, name)
  if value == nil then return nil end
  local ago
  if type(value) == "number" and value == value then return value + 0.0 end
  if type(value) == "string" then
    local count, unit = value:match("^(%d+%.?%d*)([smhdw])$")
    ago = count and tonumber(count) * seconds_in[unit]
  elseif type(value) == "table" then
    errors.check_keys(op, value, { "ago" })
    ago = type(value.ago) == "number" and value.ago >= 0 and value.ago or nil
  end
  if not ago then
    raise("invalid", op, '%s must be seconds since the epoch, { ago = seconds } or text such as "1h",'
      .. " got %s", name, quote(value))
  end
  return os.time() - ago
end

--- A whole number from `least` on; math.huge (returned as it is) means no limit.
---@return number?
function M.count(value, op, name, least)
  if value == nil or value == math.huge then return value end
  local count = type(value) == "number" and math.tointeger(value)
  if not count or count < least then
    raise("invalid", op, "%s must be a whole number from %d on, got %s", name, least, quote(value))
  end
  return count
end

--- One string or an array of them, without NUL; nil for none.
---@return string[]?
function M.strings(value, op, name)
  if value == nil then return nil end
  if type(value) == "string" then value = { value } end
  if type(value) ~= "table" or getmetatable(value) ~= nil then
    raise("invalid", op, "%s must be a string or an array of strings, got %s", name, quote(value))
  end
  local all, count = {}, 0
  for _ in pairs(value) do count = count + 1 end
  for i = 1, count do
    if value[i] == nil then raise("invalid", op, "%s must be an array of strings", name) end
    all[i] = text_of(value[i], op, ("%s[%d]"):format(name, i))
  end
  if count == 0 then
    raise("invalid", op, "%s must be a string or an array of at least one, got an empty one", name)
  end
  return all
end

--- A tag names an image: short, printable, and not shaped like a uuid.
---@return string?
function M.tag(value, op)
  if value == nil then return nil end
  text_of(value, op, "tag")
  if value == "" or #value > 255 or value:find("[%c%s]") then
    raise("invalid", op, "tag must be 1 to 255 bytes without blanks, got %s", quote(value))
  end
  if M.is_uuid(value) then
    raise("invalid", op, "tag %s looks like a uuid, which would hide it", quote(value))
  end
  return value
end

local hex = "%x%x%x%x"
local uuid_pattern = "^" .. hex .. hex .. "%-" .. (hex .. "%-"):rep(3) .. hex .. hex .. hex .. "$"

---@return boolean
function M.is_uuid(value)
  return value:find(uuid_pattern) ~= nil
end

local interruption = { timeout = true, cancelled = true, closed = true }
local foreign = setmetatable({}, { __mode = "k" }) -- errors that callbacks raised

-- What a step returned; its failure under the method's name.
local function outcome(op, good, ...)
  if good then return ... end
  local problem = ...
  if errors.is(problem) and not interruption[problem.kind] and not foreign[problem] then problem.op = op end
  error(problem, 0)
end

--- Calls an inner step of a method. What it raises names the method, not the step; a caller's interruption
--- and the errors of callbacks stay as they are.
---@param op string the method's name
---@param step function
function M.named(op, step, ...) return outcome(op, pcall(step, ...)) end

--- A callback whose errors `named` leaves alone.
---@param callback function?
---@return function?
function M.foreign(callback)
  return callback and function(...)
    local good, problem = pcall(callback, ...)
    if good then return end
    if errors.is(problem) then foreign[problem] = true end
    error(problem, 0)
  end
end

--- Whether an error came out of such a callback.
---@param problem any
---@return boolean
function M.is_foreign(problem) return foreign[problem] == true end

local function object_name(value)
  local meta = getmetatable(value)
  return type(meta) == "table" and rawget(meta, "__name") or nil
end

-- Lua files pass, closed ones do not; other objects count by their class.
local function stream_kind(value, op, name)
  local file = io.type(value)
  if file == "closed file" then
    raise("invalid", op, "%s is a closed file", name)
  end
  return file or object_name(value)
end

local function path_of(value, op, name)
  if value == "" then raise("invalid", op, "%s is an empty path", name) end
  return text_of(value, op, name)
end

-- Says of an object that is close to a stream, but none that can be `name`, what to give instead.
local function near_stream(kind, value, op, name)
  local is_input = name == "stdin"
  if kind == "bough.process" or kind == "bough.running" then
    raise("invalid", op, "%s: got %s: give its %s", name, quote(value), is_input and "stdout" or "stdin")
  elseif kind == "bough.command" or kind == "bough.pipeline" then
    raise("invalid", op, "%s: got %s: join commands with |, or start it", name, quote(value))
  elseif kind == (is_input and "bough.writer" or "bough.reader") then
    raise("invalid", op, "%s: got %s, which is the wrong end: give a %s", name, quote(value),
      is_input and "reader" or "writer")
  end
end

--- What the command reads: data, PIPE, INHERIT, a Lua file, a function that yields chunks, a reader, { path = ... }.
function M.stdin(value, op, live)
  if value == nil or value == false then return nil end
  if type(value) == "string" or type(value) == "function" then return value end
  if value == core.PIPE then
    if live then return value end
    raise("invalid", op, "stdin = bough.PIPE needs somebody to write: use popen")
  end
  if value == core.INHERIT then return value end
  local kind = stream_kind(value, op, "stdin")
  if kind == "file" or kind == "bough.reader" then return value end
  if kind == "bough.bytes" then return value.content end
  if type(value) == "table" and type(value.path) == "string"
    and (kind == nil or kind == "bough.file") then
    return { path = path_of(value.path, op, "stdin.path") }
  end
  near_stream(kind, value, op, "stdin")
  raise("invalid", op, "stdin must be data, a Lua file, a function, a reader or bough.file(path), got %s",
    quote(value))
end

--- Where output goes: true (captured), false, PIPE, INHERIT, a path, a Lua file, a function, a writer. Without a word:
--- a pipe where it is live, else captured.
function M.output(value, op, name, live)
  if value == nil and live then return core.PIPE end
  if value == nil or value == true then return true end
  if value == false or value == core.INHERIT or type(value) == "function" then return value end
  if type(value) == "string" then return path_of(value, op, name) end
  if value == core.STDOUT then
    if name == "stderr" then return value end
    raise("invalid", op, "%s = bough.STDOUT: only stderr can join it", name)
  end
  if value == core.PIPE then
    if live then return value end
    raise("invalid", op, "%s = bough.PIPE needs somebody to read: use popen, or leave it out to"
      .. " capture", name)
  end
  local kind = stream_kind(value, op, name)
  if kind == "file" or kind == "bough.writer" then return value end
  if type(value) == "table" and type(value.path) == "string"
    and (kind == nil or kind == "bough.file") then
    if value.append then
      raise("unsupported", op, '%s.append: open the file with io.open(path, "a") and pass that', name)
    end
    return path_of(value.path, op, name .. ".path")
  end
  near_stream(kind, value, op, name)
  raise("invalid", op, "%s must be true, false, a path, a Lua file, a function or a writer, got %s", name,
    quote(value))
end

local function extent(value, op, name, fallback)
  if value == nil then return fallback end
  local count = type(value) == "number" and math.tointeger(value)
  if not count or count < 1 or count > 65535 then
    raise("invalid", op, "%s must be a whole number from 1 to 65535, got %s", name, quote(value))
  end
  return count
end

--- A terminal for the command: true, or { rows =, cols =, term = }. Sizes are those of the host's terminal, where it
--- has one, else 24 by 80; `term`, the name that programs find in TERM, is "xterm-256color".
---@return { rows: integer, cols: integer, term: string }?
function M.pty(value, op)
  if value == nil or value == false then return nil end
  if value == true then value = {} end
  if type(value) ~= "table" then
    raise("invalid", op, "pty must be true or { rows =, cols =, term = }, got %s", quote(value))
  end
  errors.check_keys(op, value, { "rows", "cols", "term" })
  local rows, cols = 24, 80
  if core.terminal_size then
    local real_rows, real_cols = core.terminal_size()
    rows, cols = real_rows or rows, real_cols or cols
  end
  return {
    rows = extent(value.rows, op, "pty.rows", rows),
    cols = extent(value.cols, op, "pty.cols", cols),
    term = value.term ~= nil and text_of(value.term, op, "pty.term") or "xterm-256color",
  }
end

return M
