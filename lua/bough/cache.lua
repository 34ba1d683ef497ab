--- The run cache's key: what decides the outcome of a run, as one digest.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"

local M = {}

-- Counted with the key, so that entries made by other rules are never found.
local RULES = 1

local function by_type(a, b)
  if type(a) ~= type(b) then return type(a) < type(b) end
  return a < b
end

-- Every value begins with its kind, and strings and tables with their length: no two values give the same
-- text.
local function put(out, value)
  local kind = math.type(value) or type(value)
  if kind == "string" then
    out[#out + 1] = ("s%d:"):format(#value)
    out[#out + 1] = value
  elseif kind == "integer" then
    out[#out + 1] = ("i%d;"):format(value)
  elseif kind == "float" then
    out[#out + 1] = ("d%a;"):format(value)
  elseif kind == "boolean" then
    out[#out + 1] = value and "y" or "n"
  else
    local names = {}
    for name in pairs(value) do names[#names + 1] = name end
    table.sort(names, by_type)
    out[#out + 1] = ("T%d:"):format(#names)
    for _, name in ipairs(names) do
      put(out, name)
      put(out, value[name])
    end
  end
end

--- Text for a value made of strings, numbers, booleans and tables: the same for equal values only.
---@param value any
---@return string
function M.encode(value)
  local out = {}
  put(out, value)
  return table.concat(out)
end

--- Refuses `cache = true` where a repetition could not stand for the run.
---@param spec table from bough.options
---@param op string
function M.check(spec, op)
  local function refuse(option, why) errors.raise("invalid", op, "cache = true with %s: %s", option, why) end
  if spec.disposable then refuse("disposable = true", "there would be no image to return") end
  if spec.pty then refuse("pty", "a terminal's run cannot be repeated from memory") end
  local stdin = spec.stdin
  local is_path = type(stdin) == "table" and type(stdin.path) == "string"
  if stdin ~= nil and type(stdin) ~= "string" and not is_path then
    refuse("this stdin", "only data and bough.file(path) are the same each time")
  end
  for _, name in ipairs { "stdout", "stderr" } do
    local sink = spec[name]
    if type(sink) ~= "boolean" and sink ~= core.STDOUT then
      refuse(name .. " sent elsewhere", "a run from memory writes nothing: leave it captured, or false")
    end
  end
end

--- The key of a run. Reads a stdin file to its end. Waits.
---@param parent_uuid string
---@param spec table from bough.options
---@param files_digest string? of what was staged
---@param op string? default "run"
---@return string hex
function M.key(parent_uuid, spec, files_digest, op)
  local stdin = spec.stdin
  if type(stdin) == "table" then
    stdin = check.named(op or "run", core.sha256_file, stdin.path)
  elseif stdin then
    stdin = core.sha256(stdin)
  end
  local stderr = spec.stderr
  if stderr == core.STDOUT then stderr = "stdout" end
  return core.sha256(M.encode {
    rules = RULES, parent = parent_uuid, argv = spec.argv, env = spec.env, cwd = spec.cwd or "/",
    user = spec.user, hostname = spec.hostname, network = spec.network, limits = spec.limits,
    stdin = stdin, stdout = spec.stdout, stderr = stderr, truncate = spec.truncate_output_at,
    files = files_digest,
  })
end

return M
