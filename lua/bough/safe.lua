--- The same API, returning nil and the error value instead of raising.
--
-- Every object comes wrapped: its methods return nil and the error, and what they return is wrapped in
-- turn, alone, in arrays and from iterators. Four things still raise, for want of a second channel or of
-- a use: iterators (as io.lines does), operators, assignments, and what unwinds the code that is running: the
-- cancellation of its task, a deadline around it (which `deadline` then returns).
-- A field that has no value yet (stdout before the end) reads as nil.

local core = require "bough.core"
local bough = require "bough"
local errors = require "bough.error"

local wrap, unwrap -- values on their way out and in

local plain = {
  ["bough.error"] = true, ["bough.file"] = true, ["bough.bytes"] = true, ["bough.dir"] = true,
  ["bough.symlink"] = true, ["bough.uploaded"] = true, ["bough.match"] = true, ["bough.change"] = true,
  ["bough.diff"] = true,
}
local constants = { [core.PIPE] = true, [core.INHERIT] = true, [core.STDOUT] = true }

local function is_object(value)
  if constants[value] then return false end
  local meta = getmetatable(value)
  if type(meta) ~= "table" then return false end
  local name = rawget(meta, "__name")
  return type(name) == "string" and name:find("^bough%.") ~= nil and not plain[name]
end

local originals = setmetatable({}, { __mode = "k" }) -- proxy -> object
local proxies = setmetatable({}, { __mode = "kv" }) -- object -> proxy
local guards = setmetatable({}, { __mode = "k" }) -- raising function -> safe one
local from_guard = setmetatable({}, { __mode = "k" })

local function wrap_all(...)
  local values = table.pack(...)
  for i = 1, values.n do values[i] = wrap(values[i]) end
  return table.unpack(values, 1, values.n)
end

local function unwrap_all(...)
  local values = table.pack(...)
  for i = 1, values.n do values[i] = unwrap(values[i]) end
  return table.unpack(values, 1, values.n)
end

-- Whether `problem` is raised once, to unwind what is running: a cancellation of this task, a deadline
-- around it. That must go on up: code that only looks at return values might never end.
local function unwinds(problem)
  if errors.is(problem, "cancelled") then
    local task = core.current()
    return task ~= nil and task.cancelling == true
  end
  return errors.is(problem, "timeout") and problem.op == "deadline"
end

local function outcome(good, ...)
  if good then return wrap_all(...) end
  local problem = ...
  if unwinds(problem) then error(problem, 0) end
  return nil, problem
end

local function guard(fn)
  local safe = guards[fn]
  if not safe then
    safe = function(...) return outcome(pcall(fn, unwrap_all(...))) end
    guards[fn] = safe
    from_guard[safe] = fn
  end
  return safe
end

-- Arrays and plain tables of objects; copied only when there is something to wrap.
local function map(value, convert, seen)
  if getmetatable(value) ~= nil then return value end
  if seen[value] then return seen[value] end
  local copy, changed = {}, false
  seen[value] = copy
  for key, inner in pairs(value) do
    local new = convert(inner, seen)
    copy[key] = new
    changed = changed or not rawequal(new, inner)
  end
  if changed then return copy end
  seen[value] = value
  return value
end

local function get(object, name) return object[name] end

local meta = { __name = "bough.safe" }

function meta:__index(name)
  local good, value = pcall(get, originals[self], name)
  if not good then
    if unwinds(value) then error(value, 0) end
    return nil
  end
  if type(value) == "function" then return guard(value) end
  return wrap(value)
end

function meta:__newindex(name, value) originals[self][name] = unwrap(value) end
function meta:__call(...) return outcome(pcall(originals[self], unwrap_all(...))) end
function meta:__tostring() return tostring(originals[self]) end
function meta.__eq(a, b) return originals[a] == originals[b] end
function meta.__bor(a, b) return wrap(unwrap(a) | unwrap(b)) end
function meta:__len() return #originals[self] end

function meta:__close(problem)
  local object = originals[self]
  local object_meta = getmetatable(object)
  if object_meta.__close then object_meta.__close(object, problem) end
end

function meta:__pairs()
  local object = originals[self]
  local shown = {}
  if getmetatable(object).__pairs or type(object) == "table" then
    for name, value in pairs(object) do shown[name] = wrap(value) end
  end
  return next, shown, nil
end

function wrap(value, seen)
  local kind = type(value)
  if kind == "function" then
    -- an iterator: what it yields is wrapped, what it raises is raised
    return function(...) return wrap_all(value(unwrap_all(...))) end
  elseif kind ~= "table" and kind ~= "userdata" then
    return value
  elseif is_object(value) then
    local proxy = proxies[value]
    if not proxy then
      proxy = setmetatable({}, meta)
      originals[proxy], proxies[value] = value, proxy
    end
    return proxy
  elseif kind == "table" then
    return map(value, wrap, seen or {})
  end
  return value
end

function unwrap(value, seen)
  local kind = type(value)
  if kind == "table" then
    return originals[value] or map(value, unwrap, seen or {})
  elseif kind == "function" then
    if from_guard[value] then return from_guard[value] end
    -- a callback: it gets what everybody here gets, and may return it
    return function(...) return unwrap_all(value(wrap_all(...))) end
  end
  return value
end

---@type bough
local M = {}
for name, value in pairs(bough) do
  M[name] = type(value) == "function" and guard(value) or value
end

-- Where a deadline that has passed comes out.
function M.deadline(...)
  local function returned(good, ...)
    if good or not errors.is(..., "timeout") then return outcome(good, ...) end
    return nil, (...)
  end
  return returned(pcall(bough.deadline, unwrap_all(...)))
end

return M
