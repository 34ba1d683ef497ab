--- The files of an image on a ConTree service: listings, single entries, links.
--
-- Images never change, so what was listed once is remembered. Whether the service follows links in a path nobody says:
-- a path that it does not take is walked here, from directory to directory, and asked for again without links.

local errors = require "bough.error"
local recent = require "bough.contree.recent"
local wire = require "bough.contree.wire"

local M = {}

local raise, quote = errors.raise, errors.quote

local LISTINGS_BYTES = 16 << 20 -- as they came
local MOST_LINKS = 40

-- Paths ----------------------------------------------------------------------------------------------

--- The names in a path; "." is left out.
---@param path string
---@return string[]
function M.names(path)
  local names = {}
  for name in path:gmatch "[^/]+" do
    if name ~= "." then names[#names + 1] = name end
  end
  return names
end

--- A path without what means nothing in it: "/a/b" for "a//./b/". ".." stays.
---@param path string
---@return string
function M.clean(path) return "/" .. table.concat(M.names(path), "/") end

local function below(directory, name) return directory == "/" and "/" .. name or directory .. "/" .. name end

-- Rows -----------------------------------------------------------------------------------------------

local by_type = { [4] = "dir", [8] = "file", [10] = "symlink", [12] = "socket", [1] = "fifo" }

local function kind_of(item, mode)
  if item.is_dir then return "dir" end
  if item.is_symlink then return "symlink" end
  if item.is_regular then return "file" end
  if item.is_fifo then return "fifo" end
  if item.is_socket then return "socket" end
  return mode and by_type[mode >> 12 & 15] or "other"
end

-- Services of old tell no numbers, only names.
local function id_of(id, name)
  return math.tointeger(id) or math.tointeger(name) or 0
end

local function row_of(item)
  local name = type(item) == "table" and item.path
  if type(name) ~= "string" or name == "" or name:find "[/\0]" or name == "." or name == ".." then
    raise("protocol", "ls", "the service listed what is no entry of a directory: %s", quote(name))
  end
  local mode = math.tointeger(item.mode)
  local kind = kind_of(item, mode)
  return {
    name = name, kind = kind, size = math.tointeger(item.size) or 0, mode = (mode or 0) & 4095,
    uid = id_of(item.uid, item.owner), gid = id_of(item.gid, item.group),
    mtime = math.tointeger(item.mtime) or tonumber(item.mtime) or 0, nlink = math.tointeger(item.nlink) or 1,
    symlink_to = kind == "symlink" and type(item.symlink_to) == "string" and item.symlink_to or nil,
  }
end

-- Listings -------------------------------------------------------------------------------------------

-- Whether the service says that a path is not there, or is not what it is taken for.
local function is_refusal(problem) return errors.is(problem) and (problem.status == 404 or problem.status == 422) end

local function listings_of(self)
  self.listings = self.listings or recent.new(2 * LISTINGS_BYTES)
  return self.listings
end

-- The rows of a directory, fresh tables in no order. Raises the service's refusal. Waits.
local function fetch(self, uuid, path)
  local known, key = listings_of(self), uuid .. path
  local text = known:get(key)
  if not text then
    text = self.api:call({
      op = "ls", path = ("/inspect/%s/list"):format(wire.escape(uuid)), query = { { "path", path } }, raw = true,
    }).body
  end
  local value, why = wire.decode(text)
  if not value or type(value.files) ~= "table" then
    raise("protocol", "ls", "%s: the service's listing %s", quote(path), why or "lists nothing")
  end
  local rows = {}
  for i, item in ipairs(value.files) do rows[i] = row_of(item) end
  known:put(key, text, #text + #key)
  return rows
end

local function by_name(rows)
  local named = {}
  for _, row in ipairs(rows) do named[row.name] = row end
  return named
end

-- Single entries -------------------------------------------------------------------------------------

local function missing(path) raise("not_found", "stat", "%s: no such file or directory", quote(path)) end

-- Why a directory that should be there cannot be listed: the image is gone, in truth.
local function fetch_known(self, uuid, directory)
  local good, rows = pcall(fetch, self, uuid, directory)
  if good then return rows end
  if errors.is(rows) and rows.status == 404 and directory == "/" then
    raise("not_found", "stat", "no image %s", uuid)
  end
  error(rows, 0)
end

--- Follows a path to its end, links included, which never lead out of the image. Waits. Raises `not_found`, and
--- `invalid` for links that lead in a circle.
---@param self table the driver
---@param uuid string
---@param path string
---@return string real without links
---@return table? row nil for "/"
function M.locate(self, uuid, path)
  local todo, done, links = M.names(path), {}, 0 -- done: of directories
  local at = 1
  while todo[at] do
    local name = todo[at]
    at = at + 1
    if name == ".." then
      done[#done] = nil
    else
      local directory = "/" .. table.concat(done, "/")
      local row = by_name(fetch_known(self, uuid, directory))[name]
      if not row then missing(path) end
      if row.kind == "symlink" then
        links = links + 1
        if links > MOST_LINKS then raise("invalid", "stat", "%s: too many levels of symbolic links", quote(path)) end
        local target = row.symlink_to or ""
        if target == "" then missing(path) end
        if target:sub(1, 1) == "/" then done = {} end
        local rest = M.names(target)
        table.move(todo, at, #todo, #rest + 1, rest)
        todo, at = rest, 1
      elseif row.kind == "dir" then
        done[#done + 1] = name
      elseif todo[at] then
        raise("not_found", "stat", "%s: %s is not a directory", quote(path), quote(below(directory, name)))
      else
        return below(directory, name), row
      end
    end
  end
  local real = "/" .. table.concat(done, "/")
  if #done == 0 then return real, nil end
  local name = table.remove(done)
  return real, by_name(fetch_known(self, uuid, "/" .. table.concat(done, "/")))[name]
end

-- No listing tells of the root.
local function root_row(name)
  return { name = name, kind = "dir", size = 0, mode = 493, uid = 0, gid = 0, mtime = 0, nlink = 1 }
end

--- What is at a path, links followed. Waits. Raises `not_found`.
---@param self table the driver
---@param uuid string
---@param path string
---@return table row
function M.stat(self, uuid, path)
  local names = M.names(path)
  local is_plain = #names > 0
  for _, name in ipairs(names) do is_plain = is_plain and name ~= ".." end
  if is_plain then
    local name = table.remove(names)
    local good, rows = pcall(fetch, self, uuid, "/" .. table.concat(names, "/"))
    if not good and not is_refusal(rows) then error(rows, 0) end
    local row = good and by_name(rows)[name]
    if row and row.kind ~= "symlink" then return row end
    if good and not row then missing(path) end
  elseif #names == 0 then
    fetch_known(self, uuid, "/")
  end
  local _, row = M.locate(self, uuid, path)
  return row or root_row ""
end

--- Calls `attempt(path)`, and again without links where the service does not take it. Waits. What is wrong is told as
--- `wanted` says.
---@generic T
---@param self table the driver
---@param uuid string
---@param path string
---@param wanted "file"|"dir"|"any"
---@param attempt fun(path: string): T
---@return T
---@return string real as the service has taken it
function M.along(self, uuid, path, wanted, attempt)
  local plain = M.clean(path)
  local good, answer = pcall(attempt, plain)
  if good then return answer, plain end
  if not is_refusal(answer) then error(answer, 0) end
  local real, row = M.locate(self, uuid, path)
  local kind = row and row.kind or "dir"
  if wanted == "dir" and kind ~= "dir" then
    raise("invalid", "ls", "%s: not a directory", quote(path))
  elseif wanted == "file" and kind == "dir" then
    raise("invalid", "read", "%s: is a directory", quote(path))
  elseif wanted == "file" and kind ~= "file" then
    raise("invalid", "read", "%s: is no regular file", quote(path))
  end
  if real == plain then
    answer.message = ("%s: %s"):format(quote(path), answer.message)
    error(answer, 0)
  end
  return attempt(real), real
end

--- The rows of a directory, fresh tables in no order, links on the way followed. Waits. Raises `not_found`, and
--- `invalid` for what is none.
---@param self table the driver
---@param uuid string
---@param path string
---@return table[] rows
---@return string real as the service has taken it
function M.list(self, uuid, path)
  return M.along(self, uuid, path, "dir", function(real) return fetch(self, uuid, real) end)
end

--- The rows of a directory whose path is without links. Waits.
M.fetch = fetch

return M
