--- Making and raising the one error value, and the hints that go with it.
--
-- The value itself (`bough.error`: kind, message, op, ...) is made by the core; this module adds
-- what the Lua layer needs around it: formatting, quoting, "did you mean".

local core = require "bough.core"

local M = {}

--- Makes an error value.
---@param kind bough.error_kind
---@param op string? what was being done; `tostring` puts it in front
---@param fields table? further fields: result, cause, errno, ...
---@param fmt string message, one line; `string.format` when arguments follow
---@return bough.error
function M.new(kind, op, fields, fmt, ...)
  local message = select("#", ...) > 0 and fmt:format(...) or fmt
  local all = { op = op }
  for name, value in pairs(fields or {}) do all[name] = value end
  return core.error(kind, message, all)
end

--- Raises an error value. Never returns.
---@param kind bough.error_kind
---@param op string?
---@param fmt string
function M.raise(kind, op, fmt, ...)
  error(M.new(kind, op, nil, fmt, ...), 0)
end

--- Whether `value` is an error value, of kind `kind` when one is given.
---@param value any
---@param kind bough.error_kind?
---@return boolean
function M.is(value, kind)
  return core.is_error(value) and (kind == nil or value.kind == kind)
end

local class_names = { -- those that are not the article and the last part of the class's name
  running = "a running pipeline", instances = "engine.instances", images = "engine.images", files = "engine.files",
  file = "a bough.file", bytes = "bough.bytes", dir = "a bough.dir", uploaded = "an uploaded file",
}

-- What one of our objects, or a Lua file, is called in a message; nil for anything else.
local function object(value)
  local file = io.type(value)
  if file then return file == "file" and "a Lua file" or "a closed file" end
  local meta = getmetatable(value)
  local name = type(meta) == "table" and rawget(meta, "__name") or nil
  local class = type(name) == "string" and name:match "^bough%.([%w_]+)$"
  if not class then return nil end
  if class == "constant" then return tostring(value) end
  return class_names[class] or (class:find "^[aeiou]" and "an " or "a ") .. class:gsub("_", " ")
end

--- Renders any value for a message: strings quoted, control characters escaped, long ones clipped; objects by their
--- class.
---@param value any
---@return string
function M.quote(value)
  if type(value) ~= "string" then
    local kind = type(value)
    if kind == "number" or kind == "boolean" or kind == "nil" then return tostring(value) end
    return object(value) or "a " .. kind
  end
  local text = value
  if #text > 60 then
    -- never in the middle of a UTF-8 sequence
    local stop = 57
    while stop > 50 and (text:byte(stop + 1) & 0xC0) == 0x80 do stop = stop - 1 end
    text = text:sub(1, stop) .. "..."
  end
  text = text:gsub('[%c"\\]', function(c)
    if c == '"' or c == "\\" then return "\\" .. c end
    if c == "\n" then return "\\n" end
    return ("\\%d"):format(c:byte())
  end)
  return '"' .. text .. '"'
end

-- Optimal string alignment: edits, and swaps of neighbours, which typing produces most.
local function distance(a, b)
  local before, last = {}, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      local cost = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        cost = math.min(cost, before[j - 2] + 1)
      end
      row[j] = cost
    end
    before, last = last, row
  end
  return last[#b]
end

--- The candidate that `name` was most likely meant to be, or nil when none is near.
---@param name string
---@param candidates string[]
---@return string?
function M.nearest(name, candidates)
  local wanted = name:lower():gsub("[-%s]", "_"):sub(1, 80)
  local best, best_cost
  for _, candidate in ipairs(candidates) do
    local known = candidate:lower()
    local cost = distance(wanted, known)
    local shorter = math.min(#wanted, #known)
    if shorter >= 3 and (wanted:sub(1, shorter) == known:sub(1, shorter)) then
      cost = math.min(cost, 1.5) -- "environment" for env, "truncate" for truncate_output_at
    end
    if not best_cost or cost < best_cost or (cost == best_cost and candidate < best) then
      best, best_cost = candidate, cost
    end
  end
  if best and best_cost <= math.max(1.5, #wanted // 3) and best_cost < #wanted then return best end
  return nil
end

--- Raises kind `invalid` for a name that is not among the known ones, with the nearest or all of them.
---@param op string?
---@param what string "option", "limit", ...
---@param name any
---@param known string[]
---@param meant string? overrides the search for the nearest
function M.unknown(op, what, name, known, meant)
  if type(name) ~= "string" then
    M.raise("invalid", op, "%s names are strings, not %s", what, M.quote(name))
  end
  local near = meant or M.nearest(name, known)
  if near then
    M.raise("invalid", op, "unknown %s %s: did you mean %s?", what, M.quote(name), M.quote(near))
  end
  M.raise("invalid", op, "unknown %s %s: known are %s", what, M.quote(name),
    table.concat(known, ", "))
end

--- Checks the keys of an options table whose values the caller reads itself.
---@param op string?
---@param options table?
---@param known string[]
---@return table options an empty table for nil
function M.check_keys(op, options, known)
  if options == nil then return {} end
  if type(options) ~= "table" then
    M.raise("invalid", op, "options must be a table, got %s", M.quote(options))
  end
  local set = {}
  for _, name in ipairs(known) do set[name] = true end
  for name in pairs(options) do
    if not set[name] then M.unknown(op, "option", name, known) end
  end
  return options
end

local function last_line(text)
  local line = text and text:match("([^\n]*%S[^\n]*)%s*$")
  return line and line:gsub("%c", " "):gsub("^%s+", "")
end

--- How a command that did badly has ended, in words: what `check` says of it.
---@param result { exit_code: integer, oom: boolean?, signal: integer?, stderr: string? }
---@return string
function M.ending(result)
  local how = ("exit code %d"):format(result.exit_code)
  if result.oom then
    how = how .. ", out of memory"
  elseif result.signal then
    how = how .. (", killed by signal %d"):format(result.signal)
  end
  local line = last_line(result.stderr)
  if line then how = ("%s (last line of stderr: %s)"):format(how, M.quote(line)) end
  return how
end

return M
