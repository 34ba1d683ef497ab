--- Who a user is in an image: numbers for names, as the service takes nothing else.

local errors = require "bough.error"
local recent = require "bough.contree.recent"

local M = {}

local raise = errors.raise

local MOST = 64 -- images whose users are remembered

---@class bough.contree.users
---@field private read fun(uuid: string, path: string): string
---@field private known bough.contree.recent { passwd, group } by image
local users = {}
local users_meta = { __index = users, __name = "bough.contree.users" }

---@param read fun(uuid: string, path: string): string the content of a file in an image; raises `not_found`. May wait
---@return bough.contree.users
function M.new(read) return setmetatable({ read = read, known = recent.new(MOST) }, users_meta) end

local function id_of(text)
  local id = text and text:find "^%d+$" and math.tointeger(tonumber(text))
  return id and id < 4294967295 and id or nil
end

-- Records of `fields` fields or more, by their name and by their number, the first of each.
local function database(text, fields, make)
  local all = {}
  for line in text:gmatch "[^\n]+" do
    local parts = {}
    for part in (line .. ":"):gmatch "([^:]*):" do parts[#parts + 1] = part end
    local id = #parts >= fields and id_of(parts[3]) or nil
    if id then
      local entry = make(id, parts)
      if all[parts[1]] == nil then all[parts[1]] = entry end
      if all[id] == nil then all[id] = entry end
    end
  end
  return all
end

-- A file that is not there, or cannot be read, names nobody.
local function content(self, uuid, path)
  local good, text = pcall(self.read, uuid, path)
  if good then return text end
  if errors.is(text, "not_found") or errors.is(text, "invalid") then return "" end
  error(text, 0)
end

local function databases(self, uuid)
  local known = self.known:get(uuid)
  if known then return known end
  known = {
    passwd = database(content(self, uuid, "/etc/passwd"), 7, function(id, parts)
      return { uid = id, gid = id_of(parts[4]) or 0 }
    end),
    group = database(content(self, uuid, "/etc/group"), 4, function(id) return { gid = id } end),
  }
  self.known:put(uuid, known, 1)
  return known
end

--- The numbers of a user. Waits when the image has to be asked: for names, and for the group of a user that is given
--- without one.
---@param uuid string the image
---@param user string? "uid", "uid:gid", "name", "name:group"; nil: what the service takes without a word, root
---@return integer? uid
---@return integer? gid
function users:find(uuid, user)
  if user == nil then return nil end
  local who, group = user:match "^([^:]*):(.*)$"
  who = who or user
  local uid, gid = id_of(who), id_of(group)
  if uid and gid then return uid, gid end
  if uid == 0 and not group then return 0, 0 end
  local known = databases(self, uuid)
  local entry = known.passwd[uid or who]
  if not entry and not uid then raise("not_found", nil, 'user "%s": not in the image\'s /etc/passwd', who) end
  uid = uid or entry.uid
  if group and not gid then
    local found = known.group[group]
    if not found then raise("not_found", nil, 'group "%s": not in the image\'s /etc/group', group) end
    gid = found.gid
  end
  return uid, gid or entry and entry.gid or 0
end

return M
