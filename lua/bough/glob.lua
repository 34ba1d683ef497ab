--- Shell patterns over paths: `*` and `?` within a name, `[a-z]`, `[!a-z]`, `{this,that}`, `\` before a plain
-- character, and `**` for any number of directories. Names that begin with a dot are names like others.

local errors = require "bough.error"

local M = {}

local ANY = {} -- the component "**"

local MOST_CHOICES = 1000 -- that {a,b}{c,d}... may come to

-- One character as a Lua pattern, inside of [] too.
local function plain(character)
  return (character:gsub("%W", "%%%0"))
end

-- A set as a Lua pattern, from the "[" at `at`; nil when it is never closed.
local function set_at(text, at)
  local i = at + 1
  local negated = text:find("^[!^]", i) ~= nil
  if negated then i = i + 1 end
  local members, first = {}, true
  while i <= #text do
    local c = text:sub(i, i)
    if c == "]" and not first then
      if #members == 0 then return negated and "." or "[^%z\1-\255]", i + 1 end -- such as [z-a]
      return (negated and "[^" or "[") .. table.concat(members) .. "]", i + 1
    end
    first = false
    if c == "\\" and i < #text then
      i = i + 1
      c = text:sub(i, i)
    end
    local last = text:match("^%-([^%]])", i + 1)
    if last then
      for byte = c:byte(), last:byte() do members[#members + 1] = plain(string.char(byte)) end
      i = i + 3
    else
      members[#members + 1] = plain(c)
      i = i + 1
    end
  end
  return nil
end

-- The Lua pattern of one component.
local function component(text)
  local parts, i = { "^" }, 1
  while i <= #text do
    local c = text:sub(i, i)
    local made, behind
    if c == "*" then
      made, behind = ".*", text:match("^%*+()", i)
    elseif c == "?" then
      made = "."
    elseif c == "[" then
      made, behind = set_at(text, i)
    elseif c == "\\" and i < #text then
      made, behind = plain(text:sub(i + 1, i + 1)), i + 2
    end
    parts[#parts + 1] = made or plain(c)
    i = behind or i + 1
  end
  parts[#parts + 1] = "$"
  return table.concat(parts)
end

-- Where the first {...} is and what its choices are; nil when there is none.
local function braces(text)
  local depth, first, start, i = 0, nil, nil, 1
  local choices = {}
  while i <= #text do
    local c = text:sub(i, i)
    if c == "\\" then
      i = i + 1
    elseif c == "[" then
      local _, behind = set_at(text, i)
      i = behind and behind - 1 or i
    elseif c == "{" then
      depth = depth + 1
      if depth == 1 then first, start = i, i + 1 end
    elseif depth > 0 and (c == "}" or c == "," and depth == 1) then
      if depth == 1 then
        choices[#choices + 1] = text:sub(start, i - 1)
        start = i + 1
      end
      if c == "}" then depth = depth - 1 end
      if depth == 0 then return first, i, choices end
    end
    i = i + 1
  end
  return nil
end

-- Adds the patterns without {} that a pattern stands for.
local function expand(text, into)
  local first, last, choices = braces(text)
  if not first then
    into[#into + 1] = text
    if #into > MOST_CHOICES then
      errors.raise("invalid", nil, "%s is too many patterns in one", errors.quote(text))
    end
    return into
  end
  for _, choice in ipairs(choices) do expand(text:sub(1, first - 1) .. choice .. text:sub(last + 1), into) end
  return into
end

-- One function for what several patterns stand for.
local function any(tests)
  if #tests == 1 then return tests[1] end
  return function(...)
    for _, test in ipairs(tests) do
      if test(...) then return true end
    end
    return false
  end
end

local function split(path)
  local names = {}
  for name in path:gmatch("[^/]+") do names[#names + 1] = name end
  return names
end

-- Whether the names match; a "**" that took too few is given one more and the rest is tried again.
local function matches(parts, names)
  local p, n = 1, 1
  local star, mark
  while n <= #names do
    local part = parts[p]
    if part == ANY then
      star, mark, p = p, n, p + 1
    elseif part and names[n]:find(part) then
      p, n = p + 1, n + 1
    elseif star then
      mark = mark + 1
      p, n = star + 1, mark
    else
      return false
    end
  end
  while parts[p] == ANY do p = p + 1 end
  return parts[p] == nil
end

--- Whether `text` holds anything but plain characters.
---@param text string
---@return boolean
function M.is_magic(text) return text:find("[*?%[{\\]") ~= nil end

local function path_test(pattern)
  local parts, depth = {}, 0
  for _, text in ipairs(split(pattern)) do
    local is_any = text == "**"
    if not is_any then
      parts[#parts + 1] = component(text)
    elseif parts[#parts] ~= ANY then
      parts[#parts + 1] = ANY
    end
    depth = is_any and math.huge or depth + 1
  end
  if parts[#parts] == ANY then parts[#parts + 1] = "" end -- "a/**" is what is below a
  return function(path) return matches(parts, split(path)) end, depth
end

--- Compiles a pattern over whole relative paths.
---@param pattern string
---@return fun(path: string): boolean
---@return number depth of how many components the deepest match is; math.huge with "**"
function M.path(pattern)
  local tests, deepest = {}, 0
  for i, one in ipairs(expand(pattern, {})) do
    local depth
    tests[i], depth = path_test(one)
    deepest = math.max(deepest, depth)
  end
  return any(tests), deepest
end

--- Compiles a pattern over single names.
---@param pattern string
---@return fun(name: string): boolean
function M.name(pattern)
  local tests = {}
  for i, one in ipairs(expand(pattern, {})) do
    local made = component(one)
    tests[i] = function(name) return name:find(made) ~= nil end
  end
  return any(tests)
end

--- Compiles an `exclude` list. A pattern without "/" means that name anywhere, one with "/" a path relative
--- to the tree; one that ends in "/" only directories; "!" in front takes back. The last that matches
--- decides.
---@param patterns string|string[]|nil
---@param op string for messages
---@param name string the option's
---@return (fun(path: string, is_dir: boolean): boolean)? excluded nil when there are no patterns
function M.rules(patterns, op, name)
  if patterns == nil then return nil end
  if type(patterns) == "string" then patterns = { patterns } end
  if type(patterns) ~= "table" or getmetatable(patterns) ~= nil then
    errors.raise("invalid", op, "%s must be a pattern or an array of them, got %s", name,
      errors.quote(patterns))
  end
  local count, rules = 0, {}
  for _ in pairs(patterns) do count = count + 1 end
  if count ~= #patterns then
    errors.raise("invalid", op, '%s must be an array: %s = { "*.o", "build/" }', name, name)
  end
  for i, pattern in ipairs(patterns) do
    local rest = type(pattern) == "string" and pattern:gsub("^!", "") or ""
    local text = rest:gsub("/+$", "")
    if text == "" or text:find("\0", 1, true) then
      errors.raise("invalid", op, "%s[%d] must be a pattern, got %s", name, i, errors.quote(pattern))
    end
    rules[i] = {
      drops = pattern:sub(1, 1) ~= "!",
      only_dirs = rest ~= text,
      whole = text:find("/", 1, true) and M.path(text) or nil,
      name = not text:find("/", 1, true) and M.name(text) or nil,
    }
  end
  if #rules == 0 then return nil end
  return function(path, is_dir)
    local base = path:match("[^/]+$")
    for i = #rules, 1, -1 do
      local rule = rules[i]
      local fits = rule.name and rule.name(base) or rule.whole and rule.whole(path)
      if fits and (is_dir or not rule.only_dirs) then return rule.drops end
    end
    return false
  end
end

return M
